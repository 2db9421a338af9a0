package block

import (
	"encoding/binary"
	"hash/crc32"

	"scstore"
)

// castagnoli is CRC-32C (RFC 3720 appendix B.4), which the processor computes.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// slotSeed is what a block's checksum is mixed with, so that the right bytes in
// the wrong place fail to verify: the CRC-32C of store id, segment id and slot.
type slotSeed uint32

func newSlotSeed(store scstore.StoreID, segment uint64) slotSeed {
	var b [24]byte
	copy(b[:], store[:])
	binary.BigEndian.PutUint64(b[16:], segment)
	return slotSeed(crc32.Checksum(b[:], castagnoli))
}

// sum returns the checksum of the block p stored at slot.
func (s slotSeed) sum(p []byte, slot int) uint32 {
	place := [2]byte{byte(slot >> 8), byte(slot)}
	return crc32.Checksum(p, castagnoli) ^ crc32.Update(uint32(s), castagnoli, place[:])
}

// pageSum is the checksum of a self-verifying page: CRC-32C over the store id and
// the page without its first four bytes, which hold the result.
func pageSum(store scstore.StoreID, page []byte) uint32 {
	return crc32.Update(crc32.Checksum(store[:], castagnoli), castagnoli, page[4:])
}
