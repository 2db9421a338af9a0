// Command scstore serves a store for VM disks and talks to one.
//
// "scstore serve" is the host; every other command is a client of its API, but
// for "doctor --dir", which opens a folder that nobody serves.
//
// The rules of its output, the same for every command:
//
//   - standard output is the result and nothing else: a table, a URL, the bytes
//     of a disk, or with --json one value of a type of package internal/api;
//   - standard error is the talk: "scstore: ..." in lower case without a full
//     stop, then "hint: ..." where there is something to do, one line each; with
//     --json an error is one JSON value there;
//   - progress is talk, and --quiet leaves out all talk but errors;
//   - the exit code comes from the table in exit.go and from nowhere else;
//   - a command that is broken off (SIGINT, SIGTERM) leaves nothing half-made; a
//     second signal ends it at once.
package main
