// Package quota has the site set the quotas of drives, by its hook onQuotaUpdated (contract 12 sections 4 to 6, contract
// 42 sections B.7 and B.9).
//
// The worker compares what Core has said last with what the hook has done last, for one owner at a time, as often as
// somebody wants. What the hook has done is in the database, so an event that comes twice changes nothing, newer data
// replace older ones that have not been handled, and nothing is lost when the process ends in between: the hook then runs
// again with the same request, which it must bear.
//
// Failures are repeated for ever, ever more slowly, except those that the hook calls permanent: they wait until the
// wallet or the configuration changes or the service is started again.
//
// A quota of nothing is passed on as well, with locked set, and the hook must keep what is there: no data are ever
// deleted here. [Worker.Ready] keeps a drive from being registered before its quota is set.
//
// combinedQuotaInBytes is the quota of all drives that the owner has in the category together. It is passed unchanged to
// each of them, and sharedBetween lists their paths; a site that gives it in full to each of n drives lets the owner use
// n times as much until Core locks the wallet.
package quota
