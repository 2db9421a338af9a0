package wan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"

	"scstore"
)

// roleVariable makes this program play a part in its own tests instead of running
// them, as a process of a site or as one that emulates.
const roleVariable = "SCSTORE_WAN_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func play(role string, args []string) error {
	switch role {
	case "echo":
		return echoUntilKilled(args[0])
	case "loopback":
		return dialMyself()
	case "wait":
		fmt.Println("ready")
		select {}
	case "emulate":
		return emulateUntilKilled()
	case "unprivileged":
		return openUnprivileged()
	}
	return fmt.Errorf("unknown role %q", role)
}

// echoUntilKilled says where it listens and sends every datagram back.
func echoUntilKilled(address string) error {
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	fmt.Println(c.LocalAddr())
	return echo(c)
}

// echo sends every datagram back, until the socket is closed.
func echo(c net.PacketConn) error {
	buffer := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFrom(buffer)
		if err == nil {
			_, err = c.WriteTo(buffer[:n], from)
		}
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func dialMyself() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	return errors.Join(c.Close(), l.Close())
}

// emulateUntilKilled opens a network, starts a process in each site, which holds
// this one's standard output, and says which namespaces it uses.
func emulateUntilKilled() error {
	n, err := Open(context.Background(), Options{Sites: []string{"a", "b"}})
	if err != nil {
		return err
	}
	for _, site := range n.Sites() {
		if err := n.Do(site, func() error {
			name, err := os.Readlink("/proc/thread-self/ns/net")
			fmt.Println(name)
			return err
		}); err != nil {
			return err
		}
		cmd := roleCommand("wait")
		cmd.Stdout = os.Stdout
		if err := n.Start(site, cmd); err != nil {
			return err
		}
	}
	select {}
}

// openUnprivileged checks what a user who is not root sees.
func openUnprivileged() error {
	o := Options{Sites: []string{"a", "b"}}
	n, err := Open(context.Background(), o)
	if err == nil {
		return errors.Join(errors.New("namespaces were opened without a privilege"), n.Close())
	}
	if _, advised := errors.AsType[*scstore.HintError](err); !advised || !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("open namespaces: got %w, want a permission error with a hint", err)
	}
	o.Carrier = Relay
	if n, err = Open(context.Background(), o); err != nil {
		return err
	}
	return n.Close()
}

// roleCommand returns a command that plays a part. The path leads to this program
// also for a user who may not look into its folder.
func roleCommand(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	return cmd
}

// open opens a network for a test. Namespaces want root, and the test fails without.
func open(t testing.TB, o Options) *Network {
	t.Helper()
	if o.Sites == nil {
		o.Sites = []string{"a", "b", "c"}
	}
	n, err := Open(t.Context(), o)
	if err != nil {
		hint, _ := errors.AsType[*scstore.HintError](err)
		if hint != nil {
			t.Log("hint:", hint.Hint)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, n.Close()) })
	return n
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waitFor waits until something is so. The test's own time limit ends it.
func waitFor(t testing.TB, what string, is func() bool) {
	t.Helper()
	for !is() {
		if err := t.Context().Err(); err != nil {
			t.Fatalf("wait for %s: %v", what, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// serveEcho echoes on a socket until the test ends.
func serveEcho(t testing.TB, c net.PacketConn) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- echo(c) }()
	t.Cleanup(func() {
		check(t, c.Close())
		check(t, <-done)
	})
}

// firstLine reads the first line that a process says.
func firstLine(t testing.TB, r io.Reader) string {
	t.Helper()
	var line []byte
	for one := make([]byte, 1); ; line = append(line, one[0]) {
		if _, err := io.ReadFull(r, one); err != nil {
			t.Fatalf("read the first line after %q: %v", line, err)
		}
		if one[0] == '\n' {
			return string(line)
		}
	}
}
