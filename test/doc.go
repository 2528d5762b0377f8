// Package e2e tests the whole chain with real programs, accounts, sudo, sockets and a browser. The tests are behind the
// build tag e2e; `make e2e` runs them. They need root, because they create accounts, and remove them at the end.
package e2e
