// Code that must not compile: an error for each statement marked with WRONG, and none besides.
import { createClient } from "@supabase/supabase-js"
import type { Database, Enums, TablesInsert } from "database"

const client = createClient<Database>("http://localhost:54321", "anon-key")
const marketing = client.schema("marketing")

export async function wrong(): Promise<void> {
  await marketing.from("leads").insert({ company_name: "no address" }) // WRONG
  await marketing.from("leads").insert({ email: "user@company.com", source: "a friend" }) // WRONG
  await marketing.from("leads").update({ score: "80" }) // WRONG
  await marketing.from("leads").update({ email: null }) // WRONG
  await marketing.from("leeds").select() // WRONG
  client.schema("ingest") // WRONG
  await client.schema("analytics").rpc("ensure_events_partition", { day: 20260102 }) // WRONG
  await client.schema("analytics").rpc("ensure_events_partition", {}) // WRONG
  const { data } = await marketing.from("leads").select("email, lead_interactions(subject)").single()
  data?.lead_interactions.toFixed() // WRONG
  data?.score // WRONG
}

// The database numbers them itself.
export const journal: TablesInsert<{ schema: "analytics" }, "journals"> = { identity: "x", number: 1 } // WRONG
export const status: Enums<{ schema: "marketing" }, "lead_status"> = "forgotten" // WRONG

export async function assigned(): Promise<void> {
  await client.rpc("auto_assign_experiments", { session_id: "session_123", country: 1 }) // WRONG
}
