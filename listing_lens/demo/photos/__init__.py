"""Photos of drawn products, as different people take them, some of them broken."""
