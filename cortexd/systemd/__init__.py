"""systemd's manager as cortexd needs it: a Protocol, the real one over D-Bus, an in-memory one for tests."""
