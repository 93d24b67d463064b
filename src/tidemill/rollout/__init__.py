"""How versions replace each other: promotion at the gate, mirrors of the ledger."""
