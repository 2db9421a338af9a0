package nbd

import (
	"errors"
	"fmt"
	"testing"

	"scstore"
)

func TestErrnoTable_NamesEverySentinelOnce(t *testing.T) {
	for _, sentinel := range scstore.Sentinels() {
		n := 0
		for _, row := range errnoTable {
			if row.sentinel == sentinel {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%v is in the table %d times", sentinel, n)
		}
	}
	if got, want := len(errnoTable), len(scstore.Sentinels()); got != want {
		t.Errorf("table has %d rows, want %d", got, want)
	}
}

func TestErrnoOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Errno
	}{
		{nil, 0},
		{scstore.ErrReadOnly, EPERM},
		{fmt.Errorf("write: %w", scstore.ErrFenced), EPERM},
		{scstore.Hint(fmt.Errorf("write: %w", scstore.ErrNoSpace), "free some"), ENOSPC},
		{scstore.ErrInvalid, EINVAL},
		{scstore.ErrClosed, ESHUTDOWN},
		{scstore.ErrCorrupt, EIO},
		{scstore.ErrVersion, ENOTSUP},
		{errors.New("anything else"), EIO},
		{fmt.Errorf("proxy: %w", EOVERFLOW), EOVERFLOW},
		{Errno(0), EIO},
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("errnoOf(%v) = %d, want %d", c.err, got, c.want)
		}
	}
}

func TestErrno_MatchesTheSentinelItStandsFor(t *testing.T) {
	for _, c := range []struct {
		e      Errno
		target error
	}{
		{EPERM, scstore.ErrReadOnly}, {ENOSPC, scstore.ErrNoSpace}, {EINVAL, scstore.ErrInvalid},
		{ENOTSUP, scstore.ErrInvalid}, {ESHUTDOWN, scstore.ErrClosed},
	} {
		if !errors.Is(c.e, c.target) {
			t.Errorf("%v does not match %v", c.e, c.target)
		}
	}
	for _, sentinel := range scstore.Sentinels() {
		if errors.Is(EIO, sentinel) {
			t.Errorf("EIO matches %v", sentinel)
		}
	}
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string]Address{
		"nbd+unix:///prod/web1?socket=/run/s.sock": {"unix", "/run/s.sock", "prod/web1"},
		"nbd+unix:///?socket=x":                    {"unix", "x", ""},
		"nbd+unix:///a%20b?socket=%2Ftmp%2Fs":      {"unix", "/tmp/s", "a b"},
		"nbd://h/x":                                {"tcp", "h:10809", "x"},
		"nbd://[::1]:99/x/y":                       {"tcp", "[::1]:99", "x/y"},
		"nbd://h":                                  {"tcp", "h:10809", ""},
	} {
		got, err := ParseURL(in)
		if err != nil || got != want {
			t.Errorf("ParseURL(%q) = %+v, %v, want %+v", in, got, err, want)
			continue
		}
		if again, err := ParseURL(got.String()); err != nil || again != want {
			t.Errorf("ParseURL(%q) = %+v, %v, want %+v", got.String(), again, err, want)
		}
	}
	for _, in := range []string{"", "x", "http://h/x", "nbds://h/x", "nbd:///x", "nbd+unix:///x", "nbd://%zz"} {
		if got, err := ParseURL(in); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("ParseURL(%q) = %+v, %v, want ErrInvalid", in, got, err)
		}
	}
}
