"""What people search with: a query photo, and the pages that show what was found."""
