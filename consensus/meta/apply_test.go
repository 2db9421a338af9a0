package meta_test

import (
	"errors"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

func TestNamespace_NameIsVolumeOrFolderNeverBoth(t *testing.T) {
	s := meta.New()
	apply(t, s, volume(1, "prod/web1"), meta.CodeOK)
	apply(t, s, volume(2, "prod/web1"), meta.CodeNameTaken)
	apply(t, s, volume(2, "prod"), meta.CodeNameIsFolder)
	apply(t, s, volume(2, "prod/web1/disk"), meta.CodeParentIsVolume)
	apply(t, s, volume(2, "prod/web1/a/b"), meta.CodeParentIsVolume)
	apply(t, s, volume(2, "prod/web"), meta.CodeOK)
	apply(t, s, volume(1, "other"), meta.CodeIDTaken)
	apply(t, s, meta.Remove{Name: "prod/web"}, meta.CodeOK)
	apply(t, s, meta.Remove{Name: "prod/web1"}, meta.CodeOK)
	apply(t, s, volume(3, "prod"), meta.CodeOK)
}

func TestRename(t *testing.T) {
	s := meta.New()
	apply(t, s, volume(1, "a"), meta.CodeOK)
	apply(t, s, volume(2, "b/c"), meta.CodeOK)
	apply(t, s, meta.Rename{From: "x", To: "y"}, meta.CodeNoName)
	apply(t, s, meta.Rename{From: "a", To: "b"}, meta.CodeNameIsFolder)
	apply(t, s, meta.Rename{From: "a", To: "b/c"}, meta.CodeNameTaken)
	apply(t, s, meta.Rename{From: "a", To: "b/c/d"}, meta.CodeParentIsVolume)
	if got, ok := s.Lookup("a"); !ok || got.ID != volumeID(1) {
		t.Fatalf("after refused renames \"a\" is %+v, %v", got, ok)
	}
	apply(t, s, meta.Rename{From: "a", To: "a"}, meta.CodeOK)
	apply(t, s, meta.Rename{From: "a", To: "a/a"}, meta.CodeOK)
	apply(t, s, meta.Rename{From: "b/c", To: "b"}, meta.CodeOK)
	want := []string{"a/a", "b"}
	for i, r := range s.List("") {
		if r.Name != want[i] {
			t.Errorf("name %d: got %q, want %q", i, r.Name, want[i])
		}
	}
}

func TestList_FolderHoldsWhatLiesBelowIt(t *testing.T) {
	s := meta.New()
	for i, name := range []string{"prod/b", "prod/a", "production", "dev/prod/a"} {
		apply(t, s, volume(byte(i+1), name), meta.CodeOK)
	}
	got := s.List("prod")
	if len(got) != 2 || got[0].Name != "prod/a" || got[1].Name != "prod/b" {
		t.Errorf("List(prod) = %+v", got)
	}
	if got := s.List("production"); len(got) != 1 {
		t.Errorf("List(production) = %+v", got)
	}
}

func TestRemove_RefusedWhileAnotherIsBasedOnIt(t *testing.T) {
	s := meta.New()
	base := image(1, "debian")
	apply(t, s, base, meta.CodeOK)
	apply(t, s, clone(2, "vm", base), meta.CodeOK)
	r := apply(t, s, meta.Remove{Name: "debian"}, meta.CodeInUse)
	if !errors.Is(r.Err(), scstore.ErrBusy) {
		t.Errorf("remove of a base: %v, want ErrBusy", r.Err())
	}
	apply(t, s, meta.Forget{ID: volumeID(2)}, meta.CodeNotRemoved)
	apply(t, s, meta.Remove{ID: volumeID(2)}, meta.CodeOK)
	apply(t, s, meta.Remove{ID: volumeID(1)}, meta.CodeInUse) // the clone's data are not gone yet
	if got := s.Tombstones(); len(got) != 1 || got[0].ID != volumeID(2) {
		t.Fatalf("tombstones: %+v", got)
	}
	apply(t, s, volume(2, "again"), meta.CodeIDTaken)
	apply(t, s, meta.Forget{ID: volumeID(2)}, meta.CodeOK)
	apply(t, s, meta.Remove{ID: volumeID(1)}, meta.CodeOK)
	apply(t, s, meta.Remove{ID: volumeID(1)}, meta.CodeNoVolume)
	apply(t, s, meta.Remove{Name: "debian"}, meta.CodeNoName)
}

func TestCreateVolume_BaseMustBeALiveImageAtItsPosition(t *testing.T) {
	s := meta.New()
	base := image(1, "debian")
	apply(t, s, base, meta.CodeOK)
	apply(t, s, volume(2, "plain"), meta.CodeOK)
	wrong := clone(3, "x", base)
	wrong.BasePosition = pos(0, 2)
	apply(t, s, wrong, meta.CodeBadBase)
	small := clone(3, "x", base)
	small.SizeBytes = base.SizeBytes - scstore.BlockSize
	apply(t, s, small, meta.CodeBadBase)
	onVolume := clone(3, "x", base)
	onVolume.Base = volumeID(2)
	apply(t, s, onVolume, meta.CodeBadBase)
	onNothing := clone(3, "x", base)
	onNothing.Base = volumeID(9)
	apply(t, s, onNothing, meta.CodeBadBase)
	apply(t, s, meta.Remove{ID: base.ID}, meta.CodeOK)
	apply(t, s, clone(3, "x", base), meta.CodeBadBase)
}

func TestCommitEpoch_FenceAndParentGuardTheHead(t *testing.T) {
	s := meta.New()
	apply(t, s, volume(1, "v"), meta.CodeOK)
	id := volumeID(1)
	apply(t, s, meta.CommitEpoch{ID: id, Fence: 1, Epoch: 1}, meta.CodeNotGranted)
	if r := apply(t, s, meta.OpenFence{ID: id, Holder: "host-a"}, meta.CodeOK); r.Fence != 1 || r.Position != pos(0, 0) {
		t.Fatalf("first fence: %+v", r)
	}
	first := meta.CommitEpoch{ID: id, Fence: 1, Epoch: 1, Digest: scstore.Digest{1}}
	apply(t, s, first, meta.CodeOK)
	apply(t, s, first, meta.CodeOK) // the same again
	forged := first
	forged.Digest = scstore.Digest{2}
	apply(t, s, forged, meta.CodeBadParent)
	apply(t, s, meta.CommitEpoch{ID: id, Fence: 1, Parent: pos(1, 1), Epoch: 1}, meta.CodeBadParent)
	apply(t, s, meta.CommitEpoch{ID: id, Fence: 1, Parent: pos(0, 0), Epoch: 2}, meta.CodeBadParent)
	apply(t, s, meta.CommitEpoch{ID: id, Fence: 1, Parent: pos(1, 1), Epoch: 5}, meta.CodeOK)

	if r := apply(t, s, meta.OpenFence{ID: id, Holder: "host-b"}, meta.CodeHeld); !errors.Is(r.Err(), scstore.ErrBusy) {
		t.Errorf("fence for another host: %v, want ErrBusy", r.Err())
	}
	if r := apply(t, s, meta.OpenFence{ID: id, Holder: "host-a"}, meta.CodeOK); r.Fence != 2 || r.Position != pos(1, 5) {
		t.Fatalf("second fence: %+v", r)
	}
	fenced := apply(t, s, meta.CommitEpoch{ID: id, Fence: 1, Parent: pos(1, 5), Epoch: 6}, meta.CodeFenced)
	if !errors.Is(fenced.Err(), scstore.ErrFenced) || fenced.Fence != 2 {
		t.Errorf("commit under the old fence: %+v, %v", fenced, fenced.Err())
	}
	apply(t, s, meta.CommitEpoch{ID: id, Fence: 2, Parent: pos(1, 5), Epoch: 1}, meta.CodeOK)
	got, _ := s.Get(id)
	if got.Head != pos(2, 1) || got.Parent != pos(1, 5) || got.Holder != "host-a" {
		t.Errorf("record: %+v", got)
	}
	apply(t, s, meta.CommitEpoch{ID: id, Fence: 1, Parent: pos(1, 1), Epoch: 5}, meta.CodeOK) // long since in the history
}

func TestImage_NeverChanges(t *testing.T) {
	s := meta.New()
	apply(t, s, image(1, "debian"), meta.CodeOK)
	for _, op := range []meta.Op{
		meta.OpenFence{ID: volumeID(1), Holder: "h"},
		meta.CommitEpoch{ID: volumeID(1), Fence: 1, Parent: pos(0, 1), Epoch: 2},
		meta.Resize{ID: volumeID(1), SizeBytes: 64 * scstore.BlockSize},
	} {
		if r := apply(t, s, op, meta.CodeImage); !errors.Is(r.Err(), scstore.ErrReadOnly) {
			t.Errorf("%T of an image: %v, want ErrReadOnly", op, r.Err())
		}
	}
}

func TestResize_OnlyGrows(t *testing.T) {
	s := meta.New()
	apply(t, s, volume(1, "v"), meta.CodeOK)
	apply(t, s, meta.Resize{ID: volumeID(1), SizeBytes: 8 * scstore.BlockSize}, meta.CodeOK)
	apply(t, s, meta.Resize{ID: volumeID(1), SizeBytes: 7 * scstore.BlockSize}, meta.CodeShrink)
	apply(t, s, meta.Resize{ID: volumeID(1), SizeBytes: 8*scstore.BlockSize + 512}, meta.CodeInvalid)
	apply(t, s, meta.Resize{ID: volumeID(1), SizeBytes: scstore.MaxVolumeBytes + scstore.BlockSize}, meta.CodeInvalid)
	apply(t, s, meta.Resize{ID: volumeID(1), SizeBytes: scstore.MaxVolumeBytes}, meta.CodeOK)
	apply(t, s, meta.Resize{ID: volumeID(2), SizeBytes: scstore.MaxVolumeBytes}, meta.CodeNoVolume)
}

func TestValidate_MalformedCommandsAreRefused(t *testing.T) {
	v, i := volume(1, "v"), image(1, "i")
	noID, badSize, early := v, v, v
	noID.ID, badSize.SizeBytes, early.CreatedAtMs = scstore.VolumeID{}, 0, -1
	lone := v
	lone.BasePosition = pos(0, 1)
	noEpoch := i
	noEpoch.Position = pos(3, 0)
	commands := map[string]meta.Command{
		"no operation":           {},
		"session without client": {Op: meta.OpenSession{}},
		"session with number":    {ID: meta.CommandID{Client: clientID(1), Seq: 1}, Op: meta.OpenSession{}},
		"number without client":  {ID: meta.CommandID{Seq: 1}, Op: v},
		"client without number":  {ID: meta.CommandID{Client: clientID(1)}, Op: v},
		"no id":                  {Op: noID},
		"no size":                {Op: badSize},
		"created before 1970":    {Op: early},
		"position without base":  {Op: lone},
		"image without epoch":    {Op: noEpoch},
		"remove nothing":         {Op: meta.Remove{}},
		"remove name and id":     {Op: meta.Remove{ID: volumeID(1), Name: "v"}},
		"remove bad name":        {Op: meta.Remove{Name: "/"}},
		"forget nothing":         {Op: meta.Forget{}},
		"rename from bad name":   {Op: meta.Rename{From: "a@b", To: "a"}},
		"rename to bad name":     {Op: meta.Rename{From: "a", To: "a@b"}},
		"fence without holder":   {Op: meta.OpenFence{ID: volumeID(1)}},
		"commit without fence":   {Op: meta.CommitEpoch{ID: volumeID(1), Epoch: 1}},
		"commit without epoch":   {Op: meta.CommitEpoch{ID: volumeID(1), Fence: 1}},
		"commit huge epoch":      {Op: meta.CommitEpoch{ID: volumeID(1), Fence: 1, Epoch: 1 << 63}},
	}
	for name, c := range commands {
		t.Run(name, func(t *testing.T) {
			if err := c.Validate(); !errors.Is(err, scstore.ErrInvalid) {
				t.Errorf("Validate: got %v, want ErrInvalid", err)
			}
			s := meta.New()
			if r := s.Apply(c); r.Code != meta.CodeInvalid {
				t.Errorf("Apply: got %q, want %q", r.Code, meta.CodeInvalid)
			}
			if len(s.List("")) != 0 || s.Applied() != 1 {
				t.Errorf("the state changed: %+v, applied %d", s.List(""), s.Applied())
			}
		})
	}
}

func TestResultErr_WrapsASentinelForEveryCode(t *testing.T) {
	if err := (meta.Result{Code: meta.CodeOK}).Err(); err != nil {
		t.Errorf("CodeOK: %v", err)
	}
	for c := meta.CodeOK + 1; c <= meta.LastCode; c++ {
		err := meta.Result{Code: c}.Err()
		found := 0
		for _, sentinel := range scstore.Sentinels() {
			if errors.Is(err, sentinel) {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%q wraps %d sentinels, want 1", err, found)
		}
	}
	if err := (meta.Result{Code: 200}).Err(); !errors.Is(err, scstore.ErrVersion) {
		t.Errorf("code of a newer release: %v, want ErrVersion", err)
	}
}
