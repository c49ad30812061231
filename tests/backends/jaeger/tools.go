//go:build tools

// Package tools names what this module is for: the program, and the built pages of its user interface.
package tools

import (
	_ "github.com/jaegertracing/jaeger/cmd/jaeger"
	_ "github.com/tonistiigi/jaeger-ui-rest"
)
