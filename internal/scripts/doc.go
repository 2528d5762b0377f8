// Package scripts runs the extension scripts of a site (contract 42): programs of the operator that locate drives, set
// quotas, measure, and adapt what else differs from site to site.
//
// # A call
//
// A [Hook] is one configured program. [Hook.Call] waits for its turn, checks the program, puts the request into a private
// file, runs the program, judges exit status and reply, and has everything written down by the [Recorder], successful or
// not. Calls of one key never overlap and keep their order; calls of one hook are bounded in number.
//
// Retrying is the caller's business, because only the caller knows the newest data: see [Error], [Kind.Retryable] and
// [Retry.Pause]. A hook that changes something may see the same request again and must be idempotent.
//
// [Hook.Try] is the same call made by hand, with a sample or a given request, whose reply is judged and used for nothing. What
// a hook is asked and answers is its [Form].
//
// # Trust
//
// The configuration is trusted to name the program; the program's surroundings are not. Before each call the path is
// walked by descriptors: the file and every directory and link on the way must belong to root or to our account and be
// writable by nobody else, and the file itself must not be a link (TestProgramRules). A binary is executed through the
// descriptor that was checked. A program with a "#!" line is executed by the path that the walk went, because the kernel
// hands the interpreter a path in any case and programs look for their neighbours by it; nobody but root and our account
// can change anything on that path.
//
// The program runs as our account, in "/", in a process group and environment of its own, with no descriptor but the
// three usual ones and those of the secrets that the configuration passes to it (TestInvocation). What it writes is
// bounded, how long it runs is bounded, and at the end of its time the whole group is killed (TestHostileScripts). A
// process that leaves the group on purpose, with setsid(2), is out of our reach.
//
// What it answers is not trusted: a reply is one JSON object in UTF-8, and the caller checks what is in it. No value of
// UCloud is ever placed in arguments or environment.
package scripts
