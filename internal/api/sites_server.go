package api

import "net/http"

// sitesRoutes adds the paths of Sites.
func (s *Server) sitesRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/cluster", s.cluster)
	mux.HandleFunc("POST /v1/tokens", s.newToken)
	mux.HandleFunc("DELETE /v1/hosts/{name}", s.removeHost)
	mux.HandleFunc("GET /v1/volumes/{name}/placement", s.placement)
	mux.HandleFunc("PUT /v1/volumes/{name}/placement", s.setPlacement)
	mux.HandleFunc("POST /v1/volumes/{name}/move", s.move)
	mux.HandleFunc("POST /v1/volumes/{name}/promote", s.promote)
}

func (s *Server) cluster(w http.ResponseWriter, r *http.Request) {
	v, err := s.service.Cluster(r.Context())
	s.reply(w, r, http.StatusOK, v, err)
}

func (s *Server) newToken(w http.ResponseWriter, r *http.Request) {
	var req NewToken
	if err := decodeBody(w, r, &req); err != nil {
		s.fail(w, r, err)
		return
	}
	v, err := s.service.NewToken(r.Context(), req)
	s.reply(w, r, http.StatusCreated, v, err)
}

func (s *Server) removeHost(w http.ResponseWriter, r *http.Request) {
	v, err := s.service.RemoveHost(r.Context(), r.PathValue("name"), removeOptions(r))
	s.reply(w, r, http.StatusOK, v, err)
}

func (s *Server) placement(w http.ResponseWriter, r *http.Request) {
	v, err := s.service.Placement(r.Context(), r.PathValue("name"))
	s.reply(w, r, http.StatusOK, v, err)
}

func (s *Server) setPlacement(w http.ResponseWriter, r *http.Request) {
	var req Placement
	if err := decodeBody(w, r, &req); err != nil {
		s.fail(w, r, err)
		return
	}
	v, err := s.service.SetPlacement(r.Context(), r.PathValue("name"), req)
	s.reply(w, r, http.StatusOK, v, err)
}

func (s *Server) move(w http.ResponseWriter, r *http.Request) {
	var req Move
	if err := decodeBody(w, r, &req); err != nil {
		s.fail(w, r, err)
		return
	}
	lines(w, func(l *Line, progress func(done, total int64)) error {
		report, err := s.service.Move(r.Context(), r.PathValue("name"), req, progress)
		l.Move = &report
		return err
	})
}

func (s *Server) promote(w http.ResponseWriter, r *http.Request) {
	var req Promote
	if err := decodeBody(w, r, &req); err != nil {
		s.fail(w, r, err)
		return
	}
	v, err := s.service.Promote(r.Context(), r.PathValue("name"), req)
	s.reply(w, r, http.StatusOK, v, err)
}
