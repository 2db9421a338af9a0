package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"scstore/internal/api"
	"scstore/nbd"
)

// patience bounds every wait for another process.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"scstore": main})
}

// TestScript runs the scripts: real processes, real files, real sockets. A script
// has one store, in $WORK/d.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("SCSTORE_API", "unix:"+e.WorkDir+"/d/api.sock")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ready":       cmdReady,
			"fails":       cmdFails,
			"mkdisk":      cmdMkdisk,
			"nothingleft": cmdNothingLeft,
			"connect":     cmdConnect,
			"breakoff":    cmdBreakOff,
			"flip":        cmdFlip,
			"freeport":    cmdFreePort,
		},
		RequireExplicitExec: true,
	})
}

// client returns a client of the script's store.
func client(ts *testscript.TestScript) *api.Client {
	addr, err := api.ParseAddr(ts.Getenv("SCSTORE_API"))
	ts.Check(err)
	return api.NewClient(addr)
}

// wait calls f until it returns nil.
func wait(ts *testscript.TestScript, f func() error) {
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("not within %s: %v", patience, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// cmdReady waits until the store answers.
func cmdReady(ts *testscript.TestScript, _ bool, _ []string) {
	c := client(ts)
	defer c.Close()
	wait(ts, func() error { _, err := c.Status(context.Background()); return err })
}

// plainError is what an error looks like: one line, and at most one hint.
var plainError = regexp.MustCompile(`^((scstore|time=).*\n)*scstore: [^A-Z\n][^\n]*[^.\n]\n(hint: [^\n]+[^.\n]\n)?$`)

// cmdFails runs scstore, which must fail with the exit code, one line and a hint:
// fails CODE ARG...
func cmdFails(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: fails CODE ARG...")
	}
	err := ts.Exec("scstore", args[1:]...)
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		ts.Fatalf("scstore %s: got %v, want exit code %s", strings.Join(args[1:], " "), err, args[0])
	}
	if got := strconv.Itoa(exit.ExitCode()); got != args[0] {
		ts.Fatalf("scstore %s: exit code %s, want %s", strings.Join(args[1:], " "), got, args[0])
	}
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("a command that failed printed a result: %q", out)
	}
	if text := ts.ReadFile("stderr"); !plainError.MatchString(text) && !strings.HasPrefix(text, "{") {
		ts.Fatalf("not an error as errors are printed: %q", text)
	}
}

// cmdMkdisk makes a file of random bytes and holes, the same for the same seed:
// mkdisk FILE BYTES [SEED]
func cmdMkdisk(ts *testscript.TestScript, _ bool, args []string) {
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	seed := uint64(1)
	if len(args) > 2 {
		seed, err = strconv.ParseUint(args[2], 10, 64)
		ts.Check(err)
	}
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	rng := rand.New(rand.NewPCG(seed, 1))
	random := rand.NewChaCha8([32]byte{byte(seed)})
	ts.Check(f.Truncate(size))
	for off := int64(0); off < size; {
		n := min(1+rng.Int64N(300_000), size-off)
		if rng.IntN(2) == 0 {
			_, err := io.CopyN(io.NewOffsetWriter(f, off), random, n)
			ts.Check(err)
		}
		off += n
	}
	ts.Check(f.Close())
}

// leftover says whether the store holds anything that has no name.
func leftover(c *api.Client) error {
	st, err := c.Status(context.Background())
	if err != nil {
		return err
	}
	if st.Store.Tables != st.Volumes+st.Images {
		return fmt.Errorf("%d tables for %d volumes and %d images", st.Store.Tables, st.Volumes, st.Images)
	}
	return nil
}

// cmdNothingLeft waits until the store, which must answer, holds just so many
// images and volumes and nothing without a name: nothingleft IMAGES VOLUMES
func cmdNothingLeft(ts *testscript.TestScript, _ bool, args []string) {
	c := client(ts)
	defer c.Close()
	wait(ts, func() error { return leftover(c) })
	st, err := c.Status(context.Background())
	ts.Check(err)
	if got, want := fmt.Sprint(st.Images, " ", st.Volumes), strings.Join(args, " "); got != want {
		ts.Fatalf("images and volumes: got %s, want %s", got, want)
	}
}

// cmdConnect opens an NBD connection that stays until the script ends: connect NAME
func cmdConnect(ts *testscript.TestScript, _ bool, args []string) {
	socket := strings.TrimPrefix(strings.Replace(ts.Getenv("SCSTORE_API"), "api.sock", "nbd.sock", 1), "unix:")
	c, err := nbd.Dial(context.Background(), nbd.Address{Network: "unix", Addr: socket, Export: args[0]}.String(), nbd.DialOptions{})
	ts.Check(err)
	ts.Defer(func() { _ = c.Close() }) // it may have been closed by the other side
}

// cmdBreakOff starts an import of standard input, waits until the host has begun
// it, and sends a signal to the import or to the host; the import must end with
// the exit code: breakoff import|host INT|TERM|KILL CODE|any
func cmdBreakOff(ts *testscript.TestScript, _ bool, args []string) {
	signal := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[args[1]]
	path, err := exec.LookPath("scstore")
	ts.Check(err)
	cmd := exec.Command(path, "image", "import", "-", "broken", "--size", "1G")
	cmd.Env = append(os.Environ(), "SCSTORE_API="+ts.Getenv("SCSTORE_API"))
	in, err := cmd.StdinPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	_, err = in.Write([]byte(strings.Repeat("scstore!", 1<<20)))
	ts.Check(err)
	c := client(ts)
	defer c.Close()
	wait(ts, func() error {
		if leftover(c) == nil {
			return errors.New("the import did not begin")
		}
		return nil
	})
	victim := cmd.Process
	if args[0] == "host" {
		pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile("d/LOCK")))
		ts.Check(err)
		victim, err = os.FindProcess(pid)
		ts.Check(err)
	}
	ts.Check(victim.Signal(signal))
	_ = cmd.Wait() // its state says more
	got := strconv.Itoa(cmd.ProcessState.ExitCode())
	if got == "0" || args[2] != "any" && got != args[2] {
		ts.Fatalf("exit code %s, want %s", got, args[2])
	}
	if args[0] == "import" && signal != syscall.SIGKILL {
		ts.Check(leftover(c)) // at once: the command waits for the host
	}
	_ = in.Close() // broken already
}

// cmdFreePort sets variables to UDP ports that nobody uses: freeport NAME...
func cmdFreePort(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		ts.Check(err)
		defer func() { _ = c.Close() }() // kept until all are found, so that they differ
		_, port, err := net.SplitHostPort(c.LocalAddr().String())
		ts.Check(err)
		ts.Setenv(name, port)
	}
}

// cmdFlip flips bits in the middle of some stored bytes: flip FILE-GLOB-PREFIX TEXT
// finds TEXT in the files of a folder and damages its first place.
func cmdFlip(ts *testscript.TestScript, _ bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	for _, e := range entries {
		path := ts.MkAbs(args[0] + "/" + e.Name())
		b, err := os.ReadFile(path)
		ts.Check(err)
		if at := strings.Index(string(b), args[1]); at >= 0 {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			ts.Check(err)
			_, err = f.WriteAt([]byte{b[at] ^ 0x40}, int64(at))
			ts.Check(err)
			ts.Check(f.Close())
			return
		}
	}
	ts.Fatalf("%q is nowhere in %s", args[1], args[0])
}
