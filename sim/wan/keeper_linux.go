package wan

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"scstore"
)

// keeper is a thread of its own that starts processes: in the namespace that it
// entered, and such that they are killed when it ends. A thread that Go owns could
// do neither: it may serve another goroutine next, and the kernel sends the signal
// of PR_SET_PDEATHSIG when the thread that started the child ends.
type keeper struct {
	calls chan func()
	quit  chan struct{}
	ended sync.WaitGroup
}

// startKeeper starts the thread and calls enter on it.
func startKeeper(enter func() error) (*keeper, error) {
	k := &keeper{calls: make(chan func()), quit: make(chan struct{})}
	entered := make(chan error, 1)
	k.ended.Go(func() {
		onOwnThread(func() {
			err := enter()
			entered <- err
			for err == nil {
				select {
				case call := <-k.calls:
					call()
				case <-k.quit:
					return
				}
			}
		})
	})
	if err := <-entered; err != nil {
		k.ended.Wait()
		return nil, err
	}
	return k, nil
}

// onOwnThread calls f on a thread that no other goroutine has used meanwhile, and
// that ends with the calling goroutine. Precondition: the caller returns next.
func onOwnThread(f func()) {
	runtime.LockOSThread() // and never unlocked: so the thread ends with the goroutine
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	// This is the process's first thread, which never ends. While it is held here,
	// another goroutine is on another one.
	var other sync.WaitGroup
	other.Go(func() {
		runtime.LockOSThread()
		f()
	})
	other.Wait()
	runtime.UnlockOSThread()
}

// start starts a process that is killed when the keeper is closed.
func (k *keeper) start(cmd *exec.Cmd) error {
	attributes := &syscall.SysProcAttr{}
	if cmd.SysProcAttr != nil {
		copied := *cmd.SysProcAttr
		attributes = &copied
	}
	if attributes.Pdeathsig == 0 {
		attributes.Pdeathsig = syscall.SIGKILL
	}
	cmd.SysProcAttr = attributes
	started := make(chan error, 1)
	select {
	case k.calls <- func() { started <- cmd.Start() }:
		return <-started
	case <-k.quit:
		return scstore.ErrClosed
	}
}

// close ends the thread. It is called once.
func (k *keeper) close() {
	close(k.quit)
	k.ended.Wait()
}
