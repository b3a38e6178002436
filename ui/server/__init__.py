"""Everything between the network and the page: security, logins and routes."""
