"""Which packages a server answers for, and how one is put in the place of another."""
