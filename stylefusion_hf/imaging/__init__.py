"""Pictures: opening them, aligning faces and regions, contact sheets and animations."""
