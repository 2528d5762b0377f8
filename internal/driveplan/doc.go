// Package driveplan brings the drives of the provider into being: from allocations and drive locators to directories
// that are there and drives that UCloud/Core knows (contract 05 section C, contract 12 sections 4 and 5).
//
// # Life of a drive
//
//	desired      a locator yields a path for an owner with an allocation
//	prepared     the path is a real directory below an allowed root
//	registering  the registration is in the outbox
//	registered   Core has given it an id; final
//	suspect      the outcome of the registration is unknown and must not be tried again by itself
//	failed       Core knows the id as something else; an operator must look
//
// [Planner.Evaluate] compares desired with actual state for one owner, as often as somebody wants. It stores what it
// finds, so a crash between any two steps is repaired by the next evaluation or by the outbox. A drive that Core knows
// is never touched again, also when its locator vanishes: Core cannot delete or change drives of a provider.
//
// # What must never happen
//
// Some registrations end the Core process (contract 05 section C). Three gates stand before each one, checked when the
// registration is queued and again directly before it is sent: Core has accepted the product ([Products.Declared]), Core
// itself has named the owner (the seen users and stored projects of the database), and the directory exists. One item
// per call, labels null, the product spelled by the one constant of the catalogue. After an attempt without an answer
// Core is asked before the next; the next is the last (TestRegistrationRules).
//
// # Trust
//
// Values of variables come from identity systems and, with titles of projects, from any user. They are checked before
// they become part of a path, and the resulting path again: absolute, clean, without control characters, below an
// allowed root. The directory is reached from that root component by component without following symbolic links, so a
// user who can rename things in between gains nothing (TestDirectoryRefusesSymlinks).
package driveplan
