package store

import "context"

// Exec lets tests do what no method does.
func Exec(ctx context.Context, s *Store, statement string) error {
	_, err := s.write.ExecContext(ctx, statement)
	return err
}
