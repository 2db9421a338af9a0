package consensus

import (
	"context"

	"scstore/consensus/meta"
)

// ProposeBytes puts bytes into a group's log as they are, as another version's host
// might.
func (c *Cluster) ProposeBytes(ctx context.Context, id GroupID, b []byte) error {
	g, err := c.group(id)
	if err != nil {
		return err
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	_, err = c.host.SyncPropose(ctx, g.session, b)
	return err
}

// PlainEntry is an entry as hosts propose them.
func PlainEntry(cluster ClusterID, group GroupID, c meta.Command) []byte {
	return entry{group: group, commands: []meta.Command{c}}.encode(cluster)
}

// NewerEntry is an entry of a version to come.
func NewerEntry(cluster ClusterID, group GroupID, c meta.Command) []byte {
	b := PlainEntry(cluster, group, c)
	b[4]++
	sum := entryChecksum(b, cluster)
	return append(append(b[:40:40], byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)), b[entryHeaderBytes:]...)
}
