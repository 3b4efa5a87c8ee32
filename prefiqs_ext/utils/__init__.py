"""Small helpers that know nothing of faces or networks."""
