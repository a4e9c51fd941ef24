"""What services say to each other: messages, errors, access rules, REST bindings, and how they are decoded."""
