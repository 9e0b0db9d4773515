"""`dynrefer demo`: a page in the browser. A picture, regions drawn on it, and what models say of them."""
