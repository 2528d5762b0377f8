package files

import (
	"context"

	"ucloud-im/internal/providerapi"
)

// Retrieve describes one file or folder; the drive itself is legal (contract 10 section 5.2). What does not exist or is
// not accessible is 404.
func (s *Service) Retrieve(ctx context.Context, req *providerapi.FilesRetrieve) (providerapi.File, error) {
	st := s.state.Load()
	ref, err := s.drive(st, &req.ResolvedCollection)
	if err != nil {
		return providerapi.File{}, err
	}
	p, err := ref.Path(req.Retrieve.ID)
	if err != nil {
		return providerapi.File{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	f, err := run(ctx, s.gate, ref.Base(), func() (providerapi.File, error) {
		root, err := ref.Open()
		if err != nil {
			return providerapi.File{}, err
		}
		defer root.Close()
		local, err := root.At(p)
		if err != nil {
			return providerapi.File{}, err
		}
		info, err := local.Stat()
		if err != nil {
			return providerapi.File{}, err
		}
		return st.describe(root, p, info), nil
	}, nil)
	return f, s.refuse(ctx, err, reading)
}
