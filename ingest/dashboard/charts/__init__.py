"""Charts, as markup made on the server: without scripts, inline styles or colours. Pure."""
