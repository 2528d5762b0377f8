// Package usage measures what drives hold and reports it to UCloud/Core (contract 12 section 6, contract 30 sections 3
// and 8).
//
// # Measuring
//
// Each drive of a category with a [Measurer] is measured once per interval, spread over it, a bounded number at a time
// and never two times at once. What was measured is in the database, so a restart does not begin anew; a failure keeps
// the previous value. A directory that the server may not look into is handed to an instance of somebody who may
// (package scan).
//
// # Reporting
//
// What Core should know follows from what the database holds: for each owner and locator the sum of its drives, in units,
// rounded up, under the scope {provider}-{category}-{locator}; drives that users have made have a scope of their own.
// What Core has confirmed is in the database as well. The difference is sent: absolute values only, so that sending one
// again after an unknown outcome changes nothing. Unchanged values are sent again once a day; scopes that have gone are
// set to zero once. One owner whom Core does not know cannot hold up the others.
//
// A scope that holds a drive which was never measured is not reported yet: a part of the truth would look like a drop.
//
// # Locks
//
// Whether an owner may write is what Core's last event about the wallet says, and nothing else ([Service.Locked]). The
// answer to a report is a hint for operators only. A wallet that Core has never spoken of counts as locked.
package usage
