// Package websession is the server's side of web interfaces and desktops of jobs (contract 21 sections 5, 6 and 8): it
// decides where an interface is, gives links with one-time tokens, exchanges them for sessions of browsers, and tells the
// gateways.
//
// # The life of a link
//
//	instance          server                      gateway                 browser
//	  │ web.open ──────▶│ interface, token           │                       │
//	  │◀──── link ──────│───── interface ───────────▶│                       │
//	  └─────────────────────────────────────────────────────── link ────────▶│
//	                    │◀── exchange: SHA-256 ──────│◀──── token ───────────│
//	                    │ token used up, session     │                       │
//	                    │──── secret, interface ────▶│───── cookie ─────────▶│
//
// A session ends when its time is over, when its user is disconnected or leaves the project, and when the job ends. An
// interface follows its job: it has no place while the job does not run, and another one when it runs again elsewhere.
//
// # Trust
//
// The caller of web.open is any program of a mapped user. It may name a job, a rank, and an interface that the job has.
// Everything else is the server's: the node is what the monitor has seen, the port what the server has granted or what was
// declared at the submission, and the host name is computed. Of what an instance declares, a port counts only inside of the
// configured range and only if no job of another account has it on that node (TestHostile).
//
// A job id is a claim until Core has confirmed it: before that there is no host name for it, so that nobody can take the
// name of somebody else's job (TestForgedJob).
//
// Tokens and secrets are 256 random bits each; only hashes are stored, and the token itself does not even reach this
// process: the gateway sends its hash.
package websession
