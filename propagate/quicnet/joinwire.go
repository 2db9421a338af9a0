package quicnet

import (
	"encoding/binary"
	"fmt"
	"time"

	"scstore"
	"scstore/internal/invariant"
	"scstore/propagate/quicnet/authority"
)

// A connection of ALPN protocol scstore-join/1 carries one stream with one frame in
// each direction (see wire.go). Request:
//
//	 0   4  "SCJQ"
//	 4   1  version, 1
//	 5  32  the token's secret
//	37  16  disk id of the new host
//	53   8  its clock, nanoseconds since 1970
//	61   1  length of the host's name, then the name
//	     2  length of the certificate request, then the request
//	     4  length of what the host says to the cluster, then that
//
// Reply: 2 bytes of code; with code 0
//
//	2   8  cluster incarnation
//	    2  length of the certificate, then the certificate
//	    2  length of the authority's certificate, then that
//	    4  length of the membership, then that
//
// and else what to tell the user, in UTF-8.
const (
	joinVersion   = 1
	joinHeadBytes = 61

	// MaxJoinPayloadBytes bounds what a new host says to the cluster when it asks to
	// join.
	MaxJoinPayloadBytes = 64 << 10
	// MaxMembershipBytes bounds what it is answered.
	MaxMembershipBytes = 3 << 20

	maxJoinRequestBytes = joinHeadBytes + 1 + authority.MaxHostBytes + 2 + authority.MaxRequestBytes + 4 + MaxJoinPayloadBytes
)

var joinMagic = [4]byte{'S', 'C', 'J', 'Q'}

// joinRequest asks to join.
type joinRequest struct {
	secret  [32]byte
	disk    scstore.StoreID
	clock   time.Time
	host    string
	request []byte // certificate request
	payload []byte
}

// encode returns the request's frame.
func (j joinRequest) encode() []byte {
	invariant.Check(len(j.host) <= authority.MaxHostBytes && len(j.request) <= authority.MaxRequestBytes && len(j.payload) <= MaxJoinPayloadBytes,
		"join request of %d+%d+%d bytes", len(j.host), len(j.request), len(j.payload))
	b := make([]byte, 4, 4+maxJoinRequestBytes-MaxJoinPayloadBytes+len(j.payload))
	b = append(b, joinMagic[:]...)
	b = append(b, joinVersion)
	b = append(b, j.secret[:]...)
	b = append(b, j.disk[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(j.clock.UnixNano()))
	b = append(append(b, byte(len(j.host))), j.host...)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(j.request))), j.request...)
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(j.payload))), j.payload...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// parseJoinRequest reads a request's frame without its length. Errors: ErrInvalid;
// ErrVersion.
func parseJoinRequest(b []byte) (joinRequest, error) {
	malformed := fmt.Errorf("malformed join request: %w", scstore.ErrInvalid)
	if len(b) < joinHeadBytes+1 || [4]byte(b) != joinMagic {
		return joinRequest{}, malformed
	}
	if b[4] != joinVersion {
		return joinRequest{}, fmt.Errorf("join request of version %d, want %d: %w", b[4], joinVersion, scstore.ErrVersion)
	}
	j := joinRequest{
		secret: [32]byte(b[5:37]), disk: scstore.StoreID(b[37:53]),
		clock: time.Unix(0, int64(binary.BigEndian.Uint64(b[53:]))),
	}
	host, rest, ok := cutBytes(b[joinHeadBytes:], 1, authority.MaxHostBytes)
	j.host = string(host)
	if ok {
		j.request, rest, ok = cutBytes(rest, 2, authority.MaxRequestBytes)
	}
	if ok {
		j.payload, rest, ok = cutBytes(rest, 4, MaxJoinPayloadBytes)
	}
	if !ok || len(rest) != 0 {
		return joinRequest{}, malformed
	}
	return j, nil
}

// joinAnswer lets a host in.
type joinAnswer struct {
	incarnation uint64
	certificate []byte
	authority   []byte
	membership  []byte
}

// encode returns what follows the code of a reply.
func (j joinAnswer) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, j.incarnation)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(j.certificate))), j.certificate...)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(j.authority))), j.authority...)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(j.membership))), j.membership...)
}

// parseJoinAnswer reads what encode wrote. The slices alias b. Errors: ErrInvalid.
func parseJoinAnswer(b []byte) (joinAnswer, error) {
	malformed := fmt.Errorf("malformed answer to a join: %w", scstore.ErrInvalid)
	if len(b) < 8 {
		return joinAnswer{}, malformed
	}
	j := joinAnswer{incarnation: binary.BigEndian.Uint64(b)}
	rest := b[8:]
	var ok bool
	if j.certificate, rest, ok = cutBytes(rest, 2, authority.MaxCertificateBytes); !ok {
		return joinAnswer{}, malformed
	}
	if j.authority, rest, ok = cutBytes(rest, 2, authority.MaxCertificateBytes); !ok {
		return joinAnswer{}, malformed
	}
	if j.membership, rest, ok = cutBytes(rest, 4, MaxMembershipBytes); !ok || len(rest) != 0 {
		return joinAnswer{}, malformed
	}
	return j, nil
}

// cutBytes cuts a length of width bytes and as many bytes, at most limit, from the
// start of b.
func cutBytes(b []byte, width, limit int) (field, rest []byte, ok bool) {
	if len(b) < width {
		return nil, nil, false
	}
	var n uint64
	for _, digit := range b[:width] {
		n = n<<8 | uint64(digit)
	}
	b = b[width:]
	if n > uint64(limit) || n > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}
