package api

import (
	"net/http"
	"net/http/pprof"
)

// profileRoutes serves the process's own profiles (go tool pprof) to those who may use
// the API.
func profileRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}
