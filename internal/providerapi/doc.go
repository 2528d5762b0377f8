// Package providerapi holds the wire types between UCloud/Core and the provider, in both directions, exactly as they
// stand in JSON. There is no logic here beyond marshalling.
//
// Conventions of the wire (contract 00 section 3), which the types follow:
//
//   - An optional value is a pointer; absent and null mean the same on input, null is sent on output.
//   - Lists are sent as [], never null; [List] takes care of it. On input null, absent and [] are equal.
//   - Unknown members are ignored, member names match without regard to case (encoding/json does both).
//   - Timestamps are [Millis]: integer milliseconds since the Unix epoch, possibly negative.
//
// Every type used in a test of the package is checked against the OpenAPI schemas and the golden examples in testdata.
package providerapi
