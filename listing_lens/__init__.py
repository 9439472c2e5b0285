"""What the rooms share and what runs between them: settings, the lake, the search index, the CLI, the local stack."""
