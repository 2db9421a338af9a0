package quicnet

import (
	"context"
	"fmt"
	"time"

	"scstore"
)

// The kinds of this package.
const (
	kindRenew        Kind = 0xff01 // request: a certificate request; answer: a certificate for who asks
	kindAuthorityKey Kind = 0xff02 // answer: the authority's key
)

// Times of renewals.
const (
	renewTimeout  = time.Minute // of one attempt
	minRenewRetry = time.Minute
	maxRenewRetry = time.Hour
)

// renew has the host's certificate renewed at half of its life, until the Net is
// closed.
func (n *Net) renew() {
	wait := time.NewTimer(n.untilRenewal())
	defer wait.Stop()
	retry := minRenewRetry
	for {
		select {
		case <-wait.C:
		case <-n.ctx.Done():
			return
		}
		if left := n.untilRenewal(); left > 0 { // a timer does not count the time of a sleeping host, nor a clock that is set
			wait.Reset(left)
			continue
		}
		err := n.RenewCertificate(n.ctx)
		n.metrics.renewed(err)
		if err == nil {
			retry = minRenewRetry
			wait.Reset(n.untilRenewal())
			n.log.Info("certificate renewed", "until", n.o.Keys.Certificate().Leaf.NotAfter)
			continue
		}
		n.log.Warn("certificate not renewed", "until", n.o.Keys.Certificate().Leaf.NotAfter, "err", err)
		wait.Reset(retry + n.stagger(retry))
		retry = min(2*retry, maxRenewRetry)
	}
}

// stagger returns up to a quarter of d, always the same on one host: hosts that
// failed together do not ask again together.
func (n *Net) stagger(d time.Duration) time.Duration {
	disk := n.o.Keys.Identity().Disk
	return d / 1024 * time.Duration(disk[len(disk)-1])
}

// maxRenewalSleep bounds how long the clock is not looked at.
const maxRenewalSleep = time.Hour

// untilRenewal returns how long to wait before the clock is looked at again.
func (n *Net) untilRenewal() time.Duration {
	return min(time.Until(n.o.Keys.RenewAt()), maxRenewalSleep)
}

// RenewCertificate replaces the host's certificate and key now: by itself if it
// holds the authority's key, else by the first of Options.KeyHolders that answers.
// Open connections keep the old one.
//
// Durability: the new one is on stable storage when RenewCertificate returns. Errors:
// ErrUnreachable if no holder answers; what the holder says otherwise. The old
// certificate stays in force.
func (n *Net) RenewCertificate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	keys := n.o.Keys
	renewal, err := keys.Renew()
	if err != nil {
		return err
	}
	if a := keys.Authority(); a.HoldsKey() {
		der, err := a.Issue(renewal.Request(), keys.Identity(), time.Now(), n.o.Lifetime)
		if err != nil {
			return err
		}
		return renewal.Complete(der, time.Now())
	}
	failed := []error{fmt.Errorf("renew the certificate: no host that holds the authority's key answers: %w", scstore.ErrUnreachable)}
	for _, disk := range n.o.KeyHolders() {
		der, err := n.Request(ctx, disk, ClassRaft, kindRenew, renewal.Request())
		if err == nil {
			err = renewal.Complete(der, time.Now())
		}
		if err == nil {
			return nil
		}
		failed = append(failed, err)
	}
	return all(failed)
}

// answerRenew issues a certificate for who asks: the identity is the connection's,
// whatever the request says.
func (n *Net) answerRenew(_ context.Context, from Peer, request []byte) ([]byte, error) {
	if err := n.o.Allowed(from); err != nil {
		return nil, err
	}
	keys := n.o.Keys
	id := keys.Identity()
	id.Disk, id.Host = from.Disk, from.Host
	return keys.Authority().Issue(request, id, time.Now(), n.o.Lifetime)
}

// FetchAuthority gets the authority's key from a host that holds it, so that this
// host can admit others. The holder decides by its Options.MayHoldKey.
//
// Durability: the key is on stable storage when FetchAuthority returns. Errors:
// ErrReadOnly if this host may not have it; as Request.
func (n *Net) FetchAuthority(ctx context.Context, holder scstore.StoreID) error {
	key, err := n.Request(ctx, holder, ClassRaft, kindAuthorityKey, nil)
	if err != nil {
		return fmt.Errorf("fetch the authority's key: %w", err)
	}
	return n.o.Keys.HoldKey(key)
}

// answerAuthorityKey hands the authority's key to a host that may have it.
func (n *Net) answerAuthorityKey(_ context.Context, from Peer, _ []byte) ([]byte, error) {
	if err := n.o.Allowed(from); err != nil {
		return nil, err
	}
	if !n.o.MayHoldKey(from) {
		return nil, fmt.Errorf("%s may not hold the authority's key: %w", from.Host, scstore.ErrReadOnly)
	}
	key, err := n.o.Keys.Authority().Key()
	if err == nil {
		n.log.Info("authority's key handed out", "peer", from.Host, "disk", from.Disk.String())
	}
	return key, err
}
