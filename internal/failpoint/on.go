//go:build failpoints

package failpoint

import (
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Enabled says whether points are looked at.
const Enabled = true

// askInterval is the time between two looks of who is held.
const askInterval = 5 * time.Millisecond

// folder is where the files are; empty for none.
var folder = os.Getenv("SCSTORE_FAILPOINTS")

// Hit is called at a point. It does what the folder says.
func Hit(point string) {
	if folder == "" {
		return
	}
	file := filepath.Join(folder, point)
	met := file + ".hit"
	if os.Rename(file, met) == nil && says(met, "kill") {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // it can't fail
		select {}                                      // the signal may take a moment
	}
	for says(met, "hold") {
		time.Sleep(askInterval)
	}
}

// says reports whether a file is there and has that content.
func says(file, what string) bool {
	b, err := os.ReadFile(file)
	return err == nil && string(b) == what
}
