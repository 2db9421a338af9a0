package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scstore"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

var (
	testNow     = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	testCluster = ClusterID{0: 0xc1, 15: 1}
)

func testIdentity(n byte) Identity {
	return Identity{Cluster: testCluster, Disk: scstore.StoreID{0: 0xd1, 15: n}, Host: fmt.Sprintf("host-%d", n)}
}

func mustCreate(t *testing.T) (*Keys, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	k, err := Create(dir, testIdentity(1), testNow)
	if err != nil {
		t.Fatal(err)
	}
	return k, dir
}

// request returns a certificate request over a fresh key.
func request(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := newRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestIdentity_RefusesWhatNoCertificateMayCarry(t *testing.T) {
	good := testIdentity(1)
	if got, err := ParseIdentity(good.String()); err != nil || got != good {
		t.Fatalf("got %v, %v, want %v", got, err, good)
	}
	for _, text := range []string{
		"", "scstore://", "http" + strings.TrimPrefix(good.String(), "scstore"), good.String() + "/", good.String() + "/x",
		strings.ToUpper(good.String()), strings.Replace(good.String(), "host-1", "", 1), strings.Replace(good.String(), "host-1", "-1", 1),
		strings.Replace(good.String(), "host-1", "a b", 1), strings.Replace(good.String(), "host-1", strings.Repeat("a", MaxHostBytes+1), 1),
		Identity{Disk: good.Disk, Host: "a"}.String(), Identity{Cluster: good.Cluster, Host: "a"}.String(),
	} {
		if got, err := ParseIdentity(text); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("ParseIdentity(%q) = %v, %v", text, got, err)
		}
	}
}

func TestAuthority_VerifiesOnlyWhatItIssued(t *testing.T) {
	a, err := New(testCluster, testNow)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := New(testCluster, testNow) // the same cluster id, another key
	if err != nil {
		t.Fatal(err)
	}
	id := testIdentity(7)
	der, err := a.Issue(request(t), id, testNow, DefaultLifetime)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := stranger.Issue(request(t), id, testNow, DefaultLifetime)
	if err != nil {
		t.Fatal(err)
	}
	flipped := slices.Clone(der)
	flipped[len(flipped)-1] ^= 1
	for _, c := range []struct {
		name string
		der  []byte
		at   time.Time
		ok   bool
	}{
		{"now", der, testNow, true},
		{"by a clock that is most of an hour behind", der, testNow.Add(-Backdate + time.Second), true},
		{"by a clock that is more than an hour behind", der, testNow.Add(-Backdate - time.Second), false},
		{"in its last second", der, testNow.Add(DefaultLifetime), true},
		{"expired", der, testNow.Add(DefaultLifetime + time.Second), false},
		{"of another authority", forged, testNow, false},
		{"with a flipped bit", flipped, testNow, false},
		{"the authority's own", a.Certificate(), testNow, false},
		{"cut short", der[:len(der)-1], testNow, false},
		{"none", nil, testNow, false},
	} {
		got, err := a.Verify(c.der, c.at)
		if c.ok && (err != nil || got != id) || !c.ok && !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%s: got %v, %v", c.name, got, err)
		}
	}
}

func TestAuthority_IssuesOnlyForGoodRequests(t *testing.T) {
	a, err := New(testCluster, testNow)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaRequest, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	unsigned := request(t)
	unsigned[len(unsigned)-1] ^= 1
	other := testIdentity(2)
	other.Cluster[3]++
	for _, c := range []struct {
		name     string
		request  []byte
		id       Identity
		lifetime time.Duration
	}{
		{"rsa key", rsaRequest, testIdentity(2), DefaultLifetime},
		{"request signed by another key", unsigned, testIdentity(2), DefaultLifetime},
		{"other cluster", request(t), other, DefaultLifetime},
		{"no host name", request(t), Identity{Cluster: testCluster, Disk: scstore.StoreID{1}}, DefaultLifetime},
		{"for ever", request(t), testIdentity(2), MaxLifetime + 1},
		{"for a blink", request(t), testIdentity(2), MinLifetime - 1},
	} {
		if _, err := a.Issue(c.request, c.id, testNow, c.lifetime); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	without, err := Parse(a.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := without.Issue(request(t), testIdentity(2), testNow, DefaultLifetime); !errors.Is(err, scstore.ErrNotFound) {
		t.Errorf("issue without the key: got %v", err)
	}
	if without.Fingerprint() != a.Fingerprint() || without.Cluster() != testCluster {
		t.Error("the authority reads back as another one")
	}
}

func TestKeys_SurviveARestartAndKeepSecretsToTheirOwner(t *testing.T) {
	k, dir := mustCreate(t)
	loaded, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Identity() != k.Identity() || !loaded.Authority().HoldsKey() || loaded.ResetKey() != k.ResetKey() ||
		!slices.Equal(loaded.Certificate().Certificate[0], k.Certificate().Certificate[0]) {
		t.Error("the keys read back differ")
	}
	if _, err := Create(dir, testIdentity(2), testNow); !errors.Is(err, scstore.ErrExists) {
		t.Errorf("a second cluster in one folder: got %v", err)
	}
	for _, name := range []string{authorityKeyFile, hostFile, resetFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %04o", name, info.Mode().Perm())
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%s readable by its group: got %v", name, err)
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, scstore.ErrNotFound) {
		t.Errorf("load an empty folder: got %v", err)
	}
}

// TestKeys_DamagedFilesAreRefused cuts and flips every file and expects an error,
// never a panic and never other keys.
func TestKeys_DamagedFilesAreRefused(t *testing.T) {
	k, dir := mustCreate(t)
	for _, name := range []string{authorityFile, authorityKeyFile, hostFile, resetFile} {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(whole); at += 17 {
			for _, damaged := range [][]byte{whole[:at], append(slices.Clone(whole), whole[:at+1]...)} {
				if err := os.WriteFile(path, damaged, 0o600); err != nil {
					t.Fatal(err)
				}
				if got, err := Load(dir); err == nil && got.Identity() != k.Identity() {
					t.Errorf("%s damaged at %d: loaded as %v", name, at, got.Identity())
				} else if err == nil {
					t.Errorf("%s damaged at %d: loaded", name, at)
				}
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(dir); err != nil {
		t.Fatal(err)
	}
}

func TestAdmission_GoesOnWithTheSameKeyAfterACrash(t *testing.T) {
	k, _ := mustCreate(t)
	dir := t.TempDir()
	first, err := NewAdmission(dir, testNow)
	if err != nil {
		t.Fatal(err)
	}
	again, err := NewAdmission(dir, testNow)
	if err != nil {
		t.Fatal(err)
	}
	a, errA := RequestID(first.Request())
	b, errB := RequestID(again.Request())
	if errA != nil || errB != nil || a != b {
		t.Fatalf("the second request is over another key: %v %v", errA, errB)
	}
	id := testIdentity(2)
	der, err := k.Authority().Issue(again.Request(), id, testNow, DefaultLifetime)
	if err != nil {
		t.Fatal(err)
	}
	pinned, err := Parse(k.Authority().Certificate())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Install(pinned, testIdentity(3), der, testNow); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("certificate for another identity: got %v", err)
	}
	other, err := k.Authority().Issue(request(t), id, testNow, DefaultLifetime)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Install(pinned, id, other, testNow); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("certificate for another key: got %v", err)
	}
	if err := os.Remove(filepath.Join(dir, hostFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	joined, err := again.Install(pinned, id, der, testNow)
	if err != nil {
		t.Fatal(err)
	}
	if joined.Identity() != id || joined.Authority().HoldsKey() {
		t.Errorf("joined as %v, key held: %v", joined.Identity(), joined.Authority().HoldsKey())
	}
	if _, err := os.Stat(filepath.Join(dir, joinKeyFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key of the join is still there: %v", err)
	}
	if _, err := NewAdmission(dir, testNow); !errors.Is(err, scstore.ErrExists) {
		t.Errorf("join twice: got %v", err)
	}
	if _, err := NewAdmission(dir, testNow.Add(DefaultLifetime)); !errors.Is(err, scstore.ErrExists) {
		t.Errorf("join twice on the certificate's last day: got %v", err)
	}
	late := testNow.Add(DefaultLifetime + time.Second)
	lapsed, err := NewAdmission(dir, late)
	if err != nil {
		t.Fatal(err)
	}
	if der, err = k.Authority().Issue(lapsed.Request(), id, late, DefaultLifetime); err != nil {
		t.Fatal(err)
	}
	if joined, err = lapsed.Install(pinned, id, der, late); err != nil || !joined.RenewAt().After(late) {
		t.Errorf("join again after the certificate ended: %v", err)
	}
}

func TestKeys_RenewAndHoldKey(t *testing.T) {
	k, _ := mustCreate(t)
	if got, want := k.RenewAt(), testNow.Add(DefaultLifetime/2); !got.Equal(want) {
		t.Errorf("renew at %v, want %v", got, want)
	}
	dir := t.TempDir()
	admission, err := NewAdmission(dir, testNow)
	if err != nil {
		t.Fatal(err)
	}
	id := testIdentity(2)
	der, err := k.Authority().Issue(admission.Request(), id, testNow, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pinned, err := Parse(k.Authority().Certificate())
	if err != nil {
		t.Fatal(err)
	}
	joined, err := admission.Install(pinned, id, der, testNow)
	if err != nil {
		t.Fatal(err)
	}
	r, err := joined.Renew()
	if err != nil {
		t.Fatal(err)
	}
	later := testNow.Add(time.Hour)
	for name, wrong := range map[string]Identity{"another host": testIdentity(3)} {
		der, err := k.Authority().Issue(r.Request(), wrong, later, DefaultLifetime)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Complete(der, later); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("renewed for %s: got %v", name, err)
		}
	}
	if der, err = k.Authority().Issue(r.Request(), id, later, DefaultLifetime); err != nil {
		t.Fatal(err)
	}
	if err := r.Complete(der, later); err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := loaded.RenewAt(), later.Add(DefaultLifetime/2); !got.Equal(want) {
		t.Errorf("after the renewal: renew at %v, want %v", got, want)
	}
	stranger, err := New(testCluster, testNow)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := stranger.Key()
	if err != nil {
		t.Fatal(err)
	}
	if err := joined.HoldKey(foreign); !errors.Is(err, scstore.ErrInvalid) || joined.Authority().HoldsKey() {
		t.Errorf("hold another authority's key: got %v", err)
	}
	own, err := k.Authority().Key()
	if err != nil {
		t.Fatal(err)
	}
	if err := joined.HoldKey(own); err != nil {
		t.Fatal(err)
	}
	if loaded, err = Load(dir); err != nil || !loaded.Authority().HoldsKey() {
		t.Errorf("the key is not held after a restart: %v", err)
	}
}

func testToken() Token {
	t := Token{
		Cluster: testCluster, Authority: Fingerprint{0: 0xfa, 31: 2}, Secret: [32]byte{0: 0x5e, 31: 3},
		Expires: testNow, Addresses: []string{"192.0.2.1:7400", "[2001:db8::1]:7400", "a.example:7400"},
	}
	return t
}

func TestToken_GoldenAndRoundTrip(t *testing.T) {
	text := testToken().Encode()
	path := filepath.Join("testdata", "golden", "v1", "token.txt")
	if *rewrite {
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text+"\n" != string(want) {
		t.Errorf("got %s", text)
	}
	got, err := ParseToken(" " + string(want))
	if err != nil {
		t.Fatal(err)
	}
	if got.Encode() != text || !got.Expires.Equal(testNow) || !slices.Equal(got.Addresses, testToken().Addresses) || got.ID() != testToken().ID() {
		t.Errorf("got %+v", got)
	}
}

func TestToken_EverySlipOfThePenIsNoticed(t *testing.T) {
	text := testToken().Encode()
	for at := range len(text) {
		for _, c := range []string{"", "A", "z", "-", "\n"} {
			if changed := text[:at] + c + text[at+1:]; changed != text && strings.TrimSpace(changed) != text {
				if _, err := ParseToken(changed); err == nil {
					t.Errorf("character %d changed to %q: accepted", at, c)
				}
			}
		}
	}
}

func TestToken_NeverPrintsItsSecret(t *testing.T) {
	token := testToken()
	secret, code := hex.EncodeToString(token.Secret[:4]), token.Encode()[len(TokenPrefix)+70:][:12]
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		text := fmt.Sprintf(verb, token)
		if strings.Contains(text, secret) || strings.Contains(text, code) || strings.Contains(text, "94, 0") {
			t.Errorf("%s prints %s", verb, text)
		}
	}
	if token.ID() == (TokenID{}) || strings.Contains(token.ID().String(), secret) {
		t.Error("the id tells the secret")
	}
}

func TestNewToken_DrawsAFreshSecretAndChecksAddresses(t *testing.T) {
	a, err := New(testCluster, testNow)
	if err != nil {
		t.Fatal(err)
	}
	one, err1 := NewToken(a, testNow, []string{"h:1"})
	two, err2 := NewToken(a, testNow, []string{"h:1"})
	if err1 != nil || err2 != nil || one.ID() == two.ID() || one.Authority != a.Fingerprint() {
		t.Errorf("got %v %v, %v %v", one, err1, two, err2)
	}
	for _, addresses := range [][]string{nil, {"h"}, {":1"}, {"h:"}, {strings.Repeat("h", 255) + ":1"}, slices.Repeat([]string{"h:1"}, MaxTokenAddresses+1)} {
		if _, err := NewToken(a, testNow, addresses); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("addresses %v: got %v", addresses, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(testToken().Encode())
	f.Add(TokenPrefix)
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err == nil && token.Encode() != strings.TrimSpace(text) {
			t.Errorf("%q reads as %q", text, token.Encode())
		}
	})
}

func FuzzParseIdentity(f *testing.F) {
	f.Add(testIdentity(1).String())
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseIdentity(text)
		if err == nil && id.String() != text {
			t.Errorf("%q reads as %q", text, id)
		}
	})
}

func FuzzParseCertificate(f *testing.F) {
	a, err := New(testCluster, testNow)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a.Certificate())
	f.Fuzz(func(t *testing.T, der []byte) {
		if got, err := Parse(der); err == nil && got.Cluster() == (ClusterID{}) {
			t.Error("an authority of no cluster")
		}
		if _, err := a.Verify(der, testNow); err == nil {
			t.Error("verified what was not issued")
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := newRequest(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		if public, err := ParseRequest(der); err == nil && public == nil {
			t.Error("a request without a key")
		}
	})
}
