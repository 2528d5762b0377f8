// Package localuser answers what the machine knows about a local account, and decides whether a user instance may run
// as it.
//
// Our executables are static, so the standard library would see /etc/passwd only. Accounts usually come from LDAP or
// SSSD: the package therefore asks NSS through getent(1) and id(1), started by absolute path with an empty environment,
// a timeout and an output limit.
//
// What is trusted: the answers of NSS, after each has been checked to hold the record that was asked for. getent takes
// a number as a numeric id, whatever the caller meant, so that a login name made of digits would name somebody else's
// account (contract 02 section 9.21); see [Directory.ByName]. What an attacker may control: login names that operators
// or scripts type in, and (on many sites) the GECOS text and shell of their own record.
//
// Property guaranteed by [Policy.Check]: it succeeds only for an account that exists, is not reserved, still has the
// name that was recorded when it was mapped, belongs to the allowed group and is not closed. Only Policy makes a
// [Checked], and the launcher starts nothing without one. Tests: TestPolicy, FuzzParsePasswd, and with real accounts
// TestPolicyStopsLaunch in package launcher.
package localuser
