// Package store keeps the state of IM/Server (design D8): mappings, tickets, wallets, projects, drives, one-time
// tokens, and the outbox with what must still reach UCloud/Core. It is the only package that knows SQL.
//
// # Engines
//
// SQLite is the default: one file, no service. PostgreSQL is an option for sites that want it. Both run the same
// numbered migrations and the same queries, and every test of this package runs on both; see [Options.Driver].
//
// # Transactions
//
// All access happens in a transaction, [Store.Update] or [Store.View]. Facts and the outbox entries that belong to them
// go into the same Update (contract 05). One process runs one Update at a time, in the order of the calls, on both
// engines: the state is small, and so the engines behave alike and writers never fail on each other. Other processes
// on the same database (the operator's `ucloud database`, a second server) are kept apart by the engine: SQLite by its
// file lock, PostgreSQL by serializable isolation; the losing transaction is repeated.
//
// Within a transaction a failed statement ends it: later statements return the same error and nothing is committed.
// PostgreSQL works that way; the package makes SQLite do the same. Results that are no failure of a statement
// ([ErrNotFound], and [ErrConflict] from methods whose name begins with Insert or Close) leave it usable.
//
// # Durability
//
// When Update returns nil, the change survives kill -9 and loss of power: SQLite runs with synchronous=FULL, PostgreSQL
// with synchronous_commit=on, whatever the defaults of the account say.
//
// # Trust
//
// The package trusts its own process, root, and the PostgreSQL server that the TLS rules (contract 40, SEC-7) let it
// talk to. It refuses an SQLite file that another account could have placed or could read: see checkPrivate and
// TestSQLiteRefusesForeignFiles. The password of PostgreSQL never stands in a connection string, a log line or an error
// (TestPostgresPasswordStaysPrivate). That one uid belongs to one UCloud user and back is enforced by unique indexes
// (TestMappingsAreUnique, design D6), not by the code above them.
//
// # Values
//
// Times are stored as integer milliseconds UTC; the zero time is stored as 0 and comes back as the zero time. Text must
// be valid UTF-8 without NUL on both engines. Methods that answer a question about one row return ErrNotFound when
// there is none.
package store
