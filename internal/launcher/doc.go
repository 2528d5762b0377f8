// Package launcher starts and supervises one process per connected user, the instance, and tells gateways how to reach
// it. It is the only package that executes sudo.
//
// # Vocabulary
//
// A slot is the place of one user. It holds the listener (a socket of the service account that is handed to each
// process in turn), the route (port and hop token key) and at most one current process. The generation of a route grows
// when the process behind its listener changes.
//
// # States of a slot
//
//	          wake                     ready
//	stopped ────────▶ starting ────────────────────▶ running ◀─────────────┐
//	   ▲                 │ refused, failed              │  │  │            │
//	   │◀────────────────┘                              │  │  └─ replace ──┤ new process on the same listener,
//	   │                                                │  │               │ the old one drains beside it
//	   │◀── stopping ◀── stop, idle (acknowledged) ─────┘  └─ exit ─▶ backoff ─┘
//	   │                     request came after all ─▶ starting          │ crash loop
//	   │◀────────────────────────────────────────────────────────────────┘
//
//	recovering: at the start of the server, an instance that is registered and alive but has not reconnected yet.
//	It becomes running when it hands its listener back, stopped when it does not.
//
// One goroutine per slot, its supervisor, makes all transitions (slot.go). Everybody else puts commands into its
// mailbox or waits for the state to change.
//
// # What is trusted
//
// The kernel: SO_PEERCRED for who says hello, pidfds for who lives, fstat for who created a socket. NSS and the shadow
// database, through package localuser. The registry in the state directory, which only the service account can write.
//
// What an attacker controls: any local user may connect to the IPC socket at any time, bind any port, start
// ucloud-user by hand, and do as they like with their own instance. They gain nothing over another user, because
//
//   - a hello is accepted only from the uid for which a launch is pending, and from the process that was started
//     (TestHelloFromAnotherUser, TestHelloFromAnotherProcess);
//   - the port is bound by the server, before anything is started, and never given to another uid
//     (TestSquatters, TestPortsStayWithTheirUID);
//   - a listener comes back only if the service account created it, it still listens, and it is the one on record
//     (TestResumeRefusesForeignListeners);
//   - the key of a route goes to one process only, over IPC; arguments and environment hold nothing
//     (TestNoSecretsInSight);
//   - a launch needs a localuser.Checked, made by the policy a moment ago (TestPolicyStopsLaunch).
//
// # Pitfalls
//
//   - The server cannot signal an instance, it has another uid. See kill.go.
//   - os/exec waits with a blocking call, which would hold one thread per instance: wait only after the pidfd is
//     readable (process.go).
//   - The server's copy of a listener must stay out of the runtime's poller, which would wake the server for each
//     connection to each instance (listener.go).
//   - When the server ends, instances live on. Nothing here may kill them then.
package launcher
