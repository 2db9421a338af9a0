package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"scstore"
)

func TestExitCode_EverySentinelHasItsOwn(t *testing.T) {
	seen := map[int]error{0: nil, exitFailure: nil, 2: nil}
	for _, s := range scstore.Sentinels() {
		code := exitCode(scstore.Hint(fmt.Errorf("do a thing: %w", s), "hint"))
		if other, taken := seen[code]; taken {
			t.Errorf("%v has the exit code %d of %v", s, code, other)
		}
		seen[code] = s
		if !strings.Contains(exitHelp(), fmt.Sprintf("  %3d  ", code)) {
			t.Errorf("exit code %d is not in the help", code)
		}
	}
}

func TestExitCode_OthersAreFixed(t *testing.T) {
	for want, err := range map[int]error{
		0: nil, 1: fmt.Errorf("a bug"), 2: fmt.Errorf("x: %w", errUsage), 20: errFindings,
		130: context.Canceled, 143: fmt.Errorf("import: %w", errTerminated),
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%v: got %d, want %d", err, got, want)
		}
	}
}
