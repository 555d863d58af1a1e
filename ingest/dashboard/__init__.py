"""The dashboard: pages for the people who own the site, made on the server, from the same numbers as the API."""
