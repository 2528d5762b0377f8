// Package ipcapi lists the calls that exist on the IPC socket: their names, who may make them, and the documents they
// carry. It holds no behaviour. The transport, and the meaning of the access classes, is package ipc.
//
// Any program of a local user can make these calls (contract 04 section 7.1). Every document is untrusted input to
// its handler, and an access class is the least a caller must have, not all that a handler checks.
package ipcapi

// Protocol is the version of the documents in this package. A peer that speaks another one is told so; fields may be
// added without a new version.
const Protocol = 1
