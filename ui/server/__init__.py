"""Everything between the network and the page: security, accounts, and one server per user."""
