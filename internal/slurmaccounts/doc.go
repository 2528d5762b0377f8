// Package slurmaccounts gives each workspace its Slurm account in each machine category (contract 22 sections 3 and 7).
//
// # Which account
//
// A [Mapping] of the site says which account a workspace has: a pattern, a script, or the user's choice. What it says once
// is stored and holds until an operator has it evaluated again ([Service.Reevaluate]). An account belongs to one workspace:
// a second one that is given the same account is refused, because it could use up what the first has paid for
// (TestAccountOfAnother). Names are checked whoever made them up: they become arguments of sacctmgr (TestNames).
//
// # Management
//
// With accounting Automatic one worker makes accounts in Slurm, gives them members, limits and locks; with Scripted the
// site's programs do. What an account should be follows from the database alone: the wallet as Core told of it last, the
// members of the project, their mappings. What it is, Slurm is asked. Only the differences are written, one change after
// the other: slurmdbd 22.05 mixes up associations that several sacctmgr change at once. An event that comes twice, or a
// crash in between, changes nothing; a failure is repeated, ever more slowly, until Slurm agrees.
//
// Accounts that this module has not made are left alone until an operator hands them over ([Service.Adopt]), and so are
// members whom somebody else has put into an account (TestForeign). A locked account takes no new jobs; those that run go on.
package slurmaccounts
