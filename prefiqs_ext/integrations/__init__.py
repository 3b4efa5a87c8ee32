"""Other people's engines: each module needs a package of its own, which an extra of prefiqs_ext installs."""
