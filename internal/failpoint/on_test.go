//go:build failpoints

package failpoint

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// put asks for something at a point.
func put(t *testing.T, dir, point, what string) (met string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, point), []byte(what), 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, point+".hit")
}

func TestHit_HoldsAllWhoComeUntilTheyAreLetGo(t *testing.T) {
	folder = t.TempDir()
	defer func() { folder = "" }()
	met := put(t, folder, "here", "hold")
	Hit("elsewhere")
	ended := make(chan struct{}, 2)
	visit := func() {
		Hit("here")
		ended <- struct{}{}
	}
	go visit()
	for !says(met, "hold") {
		time.Sleep(time.Millisecond)
	}
	go visit()
	select {
	case <-ended:
		t.Fatal("one of two went on before it was let go")
	case <-time.After(20 * askInterval):
	}
	if err := os.Remove(met); err != nil {
		t.Fatal(err)
	}
	<-ended
	<-ended
	Hit("here")
}

func TestHit_KillsTheProcessOnce(t *testing.T) {
	if folder != "" { // the child
		Hit("here")
		return
	}
	dir := t.TempDir()
	met := put(t, dir, "here", "kill")
	for _, killed := range []bool{true, false} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestHit_KillsTheProcessOnce$")
		cmd.Env = append(os.Environ(), "SCSTORE_FAILPOINTS="+dir)
		err := cmd.Run()
		exit, ok := errors.AsType[*exec.ExitError](err)
		if got := ok && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL; got != killed || !killed && err != nil {
			t.Errorf("the child ended with %v, want that it was killed: %v", err, killed)
		}
		if !says(met, "kill") {
			t.Error("nothing says that the point was met")
		}
	}
}
