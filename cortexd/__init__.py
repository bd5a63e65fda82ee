"""cortexd: model servers as first-class systemd user services."""
