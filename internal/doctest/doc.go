// Package doctest holds the tests that keep the documentation true. What they rely on:
//
//   - A block marked "console" is a session. Lines that begin with a prompt ("$ ", "# ", "name$ ") are commands, the lines
//     below are their output. Commands of ucloud that need no server are executed in the root of the repository, and each
//     line of output that is shown must come, in this order; "..." stands for any lines.
//   - Every command of ucloud, in a session or in `code`, must exist with its flags.
//   - A block marked "yaml" begins with a comment that names the file. "config.yml" and "server.yml" are whole files; with
//     ", excerpt" the sections in it replace those of the example configuration. All must be accepted without a warning.
//   - Every metric, and every key of the configuration that is written with dots in `code`, must exist.
//   - Links within the repository lead to something.
package doctest
