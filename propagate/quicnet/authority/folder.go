package authority

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"scstore"
)

// The files of a host's folder, in PEM form. The host's certificate is beside its
// key in one file, so that one rename changes both; it is written last.
const (
	authorityFile    = "authority.pem"
	authorityKeyFile = "authority.key" // secret; only on hosts that may admit others
	hostFile         = "host.pem"      // secret
	joinKeyFile      = "join.key"      // secret; of a join under way
	resetFile        = "reset.key"     // secret
)

// The types of PEM blocks.
const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
	pemReset       = "SCSTORE RESET KEY"
)

// maxFileBytes bounds each file that is read.
const maxFileBytes = 16 << 10

type folder struct{ dir string }

// newFolder makes the folder for a host that is in no cluster, or whose certificate
// has expired at the time now.
func newFolder(dir string, now time.Time) (folder, error) {
	f := folder{dir: dir}
	_, der, err := f.loadHost()
	switch {
	case errors.Is(err, scstore.ErrNotFound):
	case err != nil:
		return folder{}, err
	default:
		cert, err := parseCertificate(der)
		if err != nil {
			return folder{}, fmt.Errorf("load %s: %w", f.path(hostFile), err)
		}
		if !now.After(cert.NotAfter) {
			return folder{}, fmt.Errorf("%s: this host is in a cluster: %w", f.path(hostFile), scstore.ErrExists)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return folder{}, fmt.Errorf("make the folder of keys: %w", err)
	}
	return f, nil
}

func (f folder) path(name string) string { return filepath.Join(f.dir, name) }

func (f folder) saveAuthority(a *Authority) error {
	return f.save(authorityFile, 0o644, &pem.Block{Type: pemCertificate, Bytes: a.Certificate()})
}

func (f folder) saveAuthorityKey(a *Authority) error { return f.saveKey(authorityKeyFile, a.key) }

func (f folder) saveReset(key [32]byte) error {
	return f.save(resetFile, 0o600, &pem.Block{Type: pemReset, Bytes: key[:]})
}

func (f folder) saveKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return f.save(name, 0o600, &pem.Block{Type: pemKey, Bytes: der})
}

func (f folder) saveHost(key *ecdsa.PrivateKey, cert []byte) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode %s: %w", hostFile, err)
	}
	return f.save(hostFile, 0o600, &pem.Block{Type: pemKey, Bytes: der}, &pem.Block{Type: pemCertificate, Bytes: cert})
}

// loadAuthority reads the certificate, and the key if it is there.
func (f folder) loadAuthority() (*Authority, error) {
	blocks, err := f.load(authorityFile, false, pemCertificate)
	if err != nil {
		return nil, err
	}
	a, err := Parse(blocks[0])
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", f.path(authorityFile), err)
	}
	key, err := f.loadKey(authorityKeyFile)
	if errors.Is(err, scstore.ErrNotFound) {
		return a, nil
	}
	if err != nil {
		return nil, err
	}
	if a, err = a.WithKey(key); err != nil {
		return nil, fmt.Errorf("load %s: %w", f.path(authorityKeyFile), err)
	}
	return a, nil
}

func (f folder) loadHost() (*ecdsa.PrivateKey, []byte, error) {
	blocks, err := f.load(hostFile, true, pemKey, pemCertificate)
	if err != nil {
		return nil, nil, err
	}
	key, err := f.parseKey(hostFile, blocks[0])
	return key, blocks[1], err
}

func (f folder) loadKey(name string) (*ecdsa.PrivateKey, error) {
	blocks, err := f.load(name, true, pemKey)
	if err != nil {
		return nil, err
	}
	return f.parseKey(name, blocks[0])
}

func (f folder) loadReset() ([32]byte, error) {
	blocks, err := f.load(resetFile, true, pemReset)
	if err != nil {
		return [32]byte{}, err
	}
	if len(blocks[0]) != 32 {
		return [32]byte{}, fmt.Errorf("load %s: key of %d bytes: %w", f.path(resetFile), len(blocks[0]), scstore.ErrInvalid)
	}
	return [32]byte(blocks[0]), nil
}

func (f folder) parseKey(name string, der []byte) (*ecdsa.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("load %s: %v: %w", f.path(name), err, scstore.ErrInvalid)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("load %s: no ECDSA key: %w", f.path(name), scstore.ErrInvalid)
	}
	return key, nil
}

// save writes a file aside, makes it durable and puts it in place. A file that was
// left aside is replaced, with the mode asked for.
func (f folder) save(name string, mode os.FileMode, blocks ...*pem.Block) error {
	var text []byte
	for _, b := range blocks {
		text = append(text, pem.EncodeToMemory(b)...)
	}
	aside := f.path(name) + ".new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("save %s: %w", f.path(name), err)
	}
	file, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("save %s: %w", f.path(name), err)
	}
	_, err = file.Write(text)
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("save %s: %w", f.path(name), err)
	}
	if err := os.Rename(aside, f.path(name)); err != nil {
		return fmt.Errorf("save %s: %w", f.path(name), err)
	}
	return f.sync()
}

func (f folder) remove(name string) error {
	if err := os.Remove(f.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", f.path(name), err)
	}
	return f.sync()
}

func (f folder) sync() error {
	d, err := os.Open(f.dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", f.dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", f.dir, err)
	}
	return nil
}

// load reads a file of blocks with these types, in order. A secret must not be
// readable by others.
func (f folder) load(name string, secret bool, types ...string) ([][]byte, error) {
	file, err := os.Open(f.path(name))
	if err != nil {
		return nil, fmt.Errorf("load keys: %w", notFound(err))
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("load keys: %w", err)
	}
	if secret && info.Mode().Perm()&0o077 != 0 {
		return nil, scstore.Hint(fmt.Errorf("load %s: mode %04o lets others read a secret: %w", f.path(name), info.Mode().Perm(), scstore.ErrInvalid),
			"chmod 600 %s, and renew what others may have read", f.path(name))
	}
	text, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", f.path(name), err)
	}
	malformed := fmt.Errorf("load %s: malformed: %w", f.path(name), scstore.ErrInvalid)
	if len(text) > maxFileBytes {
		return nil, malformed
	}
	var blocks [][]byte
	for _, want := range types {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil || b.Type != want {
			return nil, malformed
		}
		blocks = append(blocks, b.Bytes)
	}
	if len(text) != 0 {
		return nil, malformed
	}
	return blocks, nil
}
