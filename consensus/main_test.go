package consensus_test

import (
	"io"
	"log"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // the log's store complains that a disk in memory has no size
	goleak.VerifyTestMain(m)
}
