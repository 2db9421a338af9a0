//go:build !failpoints

package failpoint

import (
	"os"
	"path/filepath"
	"testing"
)

func TestHit_IsNothingInTheProgramAsItIsShipped(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SCSTORE_FAILPOINTS", dir)
	file := filepath.Join(dir, "here")
	if err := os.WriteFile(file, []byte("kill"), 0o600); err != nil {
		t.Fatal(err)
	}
	Hit("here")
	if _, err := os.Stat(file); err != nil || Enabled {
		t.Errorf("the point was looked at: %v", err)
	}
}
