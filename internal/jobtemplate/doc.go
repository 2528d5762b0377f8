// Package jobtemplate renders the templates of applications: the Jinja dialect of contract 24 section 6. A template is user input,
// and the text that it makes is a program; so the package bounds what a template can do, and quotes what it prints.
//
// Syntax is gonja's: its lexer, its parser and its tree are used, behind a scanner that takes string literals and line breaks out of
// its hands and refuses characters that it would swallow (scan.go). Evaluation is not. Measured on gonja v2.9.1: a recursive macro ends the
// process with a stack overflow that Go cannot recover from; range(10**9), "x" * 10**9 and nested loops take all memory or run for ever and no
// context stops them; a text is either quoted as HTML or not at all, lists are printed raw; attribute access reaches exported Go methods. So the
// tree is walked here, over a closed set of values, and each step is paid for from a budget.
//
// # Quoting
//
// A value is data or [Code]. Data is what users type, and every text made of it; {{ }} prints it as one bash word. Code is bash text and
// is printed as it is. Only these make Code: the filters safe and escape (which quotes first), autoescape false, functions of the caller that
// return it, and what a block or macro has rendered. Where data and Code are joined, the data is quoted and the result is Code. Lists are printed as
// one word for each element; maps and nested lists are refused.
//
// # Bounds
//
// Source, output, steps, bytes allocated, depth of nesting and time are bounded, see [Limits]. There is no include, import or
// extends, no file, no environment and no clock; two renderings of the same input are equal.
package jobtemplate
