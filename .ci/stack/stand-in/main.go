// A stand-in for Tempo, Loki and Grafana in .ci/stack/test: answers their health checks, serves metrics, and discards the data that it
// receives.
//
// The name under which it is started (tempo, loki or grafana) chooses the ports, on which it serves HTTP/1 and HTTP/2 without TLS.
// With -health.url=URL it exits with 0 if the URL responds with 200, like Tempo and Loki. It ignores all other flags, so that the
// commands of deploy/compose.yaml work unchanged.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
)

// The listen addresses of each program.
var addresses = map[string][]string{
	"tempo":   {":3200", ":4317"},
	"loki":    {":3100"},
	"grafana": {":3000"},
}

func health(url string) {
	answer, err := http.Get(url)
	if err != nil {
		log.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK {
		log.Fatal(answer.Status)
	}
}

func main() {
	program := filepath.Base(os.Args[0])
	for _, argument := range os.Args[1:] {
		if url, ok := strings.CutPrefix(argument, "-health.url="); ok {
			health(url)
			return
		}
	}

	var received atomic.Int64
	serve := func(w http.ResponseWriter, r *http.Request) {
		discarded, _ := io.Copy(io.Discard, r.Body)
		if discarded > 0 {
			received.Add(1)
		}
		switch {
		case strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
			// An empty gRPC message and the status OK, which accept an OTLP export.
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Trailer", "Grpc-Status")
			w.Write(make([]byte, 5))
			w.Header().Set("Grpc-Status", "0")
		case r.URL.Path == "/metrics":
			w.Header().Set("Content-Type", "text/plain; version=0.0.4")
			fmt.Fprintf(w, "# TYPE stand_in_received_total counter\nstand_in_received_total %d\n", received.Load())
		default:
			// An empty OTLP response in protobuf has no bytes.
			w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		}
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	ended := make(chan error)
	for _, address := range addresses[program] {
		server := http.Server{Addr: address, Handler: http.HandlerFunc(serve), Protocols: &protocols}
		go func() { ended <- server.ListenAndServe() }()
	}
	if len(addresses[program]) == 0 {
		log.Fatalf("%s: must be called tempo, loki or grafana", program)
	}
	log.Fatal(<-ended)
}
