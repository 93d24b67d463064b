"""From sources to checked, split and described rows."""
